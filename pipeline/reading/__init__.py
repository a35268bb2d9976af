"""Reading any video: files, a camera; captions."""
