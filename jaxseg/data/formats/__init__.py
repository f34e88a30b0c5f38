"""Files to arrays and back: images, labels, volumes."""
