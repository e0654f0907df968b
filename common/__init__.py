"""What methods share: training loop, data, checkpoints, stages, figures. Imports no method."""
