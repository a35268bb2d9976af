"""Which of the face mesh's 478 landmarks are kept, by their index in mediapipe's mesh.

Sides as in a picture of a face that is not mirrored: the person's right eye stands left. Chosen to be the points of
the 68-point scheme that the canonical face was made from.
"""

RIGHT_EYE_CORNERS = (33, 133)  # points 36, 39: outer, inner. Corners, unlike lids, do not blink
LEFT_EYE_CORNERS = (362, 263)  # points 42, 45: inner, outer
NOSE_BASE = (98, 97, 2, 326, 327)  # points 31 to 35: under the nostrils, 2 being the foot of the septum
MOUTH_CORNERS = (61, 291)  # points 48, 54
OUTER_LIPS = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181)  # points 48 to 59
INNER_LIPS = (78, 81, 13, 311, 308, 402, 14, 178)  # points 60 to 67; 13 and 14 face each other across the gap
LIP_GAP = (13, 14)
KEPT = tuple(dict.fromkeys((*RIGHT_EYE_CORNERS, *LEFT_EYE_CORNERS, *NOSE_BASE, *OUTER_LIPS, *INNER_LIPS)))
"""The landmarks that are stored: what geometry needs, a fifteenth of the mesh."""

PLACES = {index: place for place, index in enumerate(KEPT)}
"""Where a landmark of the mesh stands among the kept."""
