"""The body model's joints by name, in SMPL-X order. `body_pose` leaves out the pelvis: joint j is its row j - 1."""

SPINE, NECK, HEAD, JAW = (3, 6, 9), 12, 15, 22
HEAD_JOINTS = (HEAD, JAW, 23, 24)  # with the eyes
LEG_JOINTS = (1, 2, 4, 5, 7, 8, 10, 11)
# Of the left side, then of the right one.
COLLARS, SHOULDERS, ELBOWS, WRISTS, KNUCKLES = (13, 14), (16, 17), (18, 19), (20, 21), (28, 43)  # of middle fingers
ARMS = (SHOULDERS, ELBOWS, WRISTS)
HAND_JOINTS = {"left_hand": (20, *range(25, 40)), "right_hand": (21, *range(40, 55))}
