"""Companion to the talk "Leveraging Attention in Masked Image Modeling and Pooling" (AttMask and SimPool)."""
