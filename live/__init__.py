"""Live avatars: a person drawn pose by pose, and what drives one: video, camera, blendshapes."""
