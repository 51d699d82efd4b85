"""Tokens and activations, straight from process to process: frames, streams, flow control."""
