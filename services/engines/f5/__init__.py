"""F5-TTS: speech in the voice of a short reference clip.

``bundle`` loading is in ``model``, the text's rules in ``text``, the clip's in ``reference``, and
synthesis itself in ``synthesis``. Importing this package does not import torch.
"""
