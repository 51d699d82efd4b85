"""How fast this node's devices really work: from the times of decoding steps to figures that predictions use."""
