"""Self-supervised 3D keypoints from multi-view videos (BKinD-3D, Sun et al., CVPR 2023)."""
