"""The demo corpus: a miniature Chinese-LiPS, drawn from one public-domain photograph."""
