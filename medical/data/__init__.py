"""Medical images: readers, tables of studies, splits by patient, phantoms with known lesions."""
