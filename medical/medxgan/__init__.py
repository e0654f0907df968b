"""medXGAN: explains a frozen classifier by a generator that splits anatomy from the class."""
