"""Pixels <-> latents, waveform <-> codes, text <-> ids; each behind one small interface, each streaming on decode."""
