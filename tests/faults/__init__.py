"""Kills, damage and hostile input: nothing hangs, nothing is executed, nothing good is lost, and each fault is told."""
