"""VidChatBench: reads files of any system, and knows nothing of our model."""
