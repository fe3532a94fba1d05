"""vidchat: train and stream audio-visual dyadic conversation."""
