"""The demo corpus: a small imitation of Chinese-LiPS, drawn from one public-domain photograph."""
