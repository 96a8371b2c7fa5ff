"""What a trained network becomes: SavedModel, TFLite files, compressed and shipped weights."""
