"""One module per DVC stage, and what only they need: corpora, video, landmarks, mouth geometry, pages."""
