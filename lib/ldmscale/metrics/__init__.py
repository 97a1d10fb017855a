"""Images or features to numbers. PyTorch and clean-fid load inside the functions that need them: they cost seconds."""
