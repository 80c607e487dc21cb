"""The main job on real recorded speech, from upload to download, and its report."""
