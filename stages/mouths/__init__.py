"""From the pictures of a video to one steady mouth clip: faces, landmarks, geometry, pixels."""
