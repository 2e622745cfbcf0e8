"""nn.Modules shared by several models, with the key names of their public checkpoints."""
