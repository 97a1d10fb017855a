"""Real-ESRGAN's two-stage degradation (Wang et al., arXiv 2107.10833): sharp images made to look like real poor ones.

``pipeline.degrade`` is the way in. In NumPy, image by image, so that item i is the same everywhere; it does what the
official x4plus training code does in batches on a GPU, except:

- Everything is drawn per image. The official code draws resize, noise kind and order once per batch, and mixes batches
  again through a pool of 180 pairs, for which there is no need here.
- JPEG is libjpeg's (integer quality, rounded pixels, smooth chroma), not the official imitation of it (DiffJPEG).
- Reflection goes on where an image is smaller than half a kernel, where PyTorch would refuse it.
"""
