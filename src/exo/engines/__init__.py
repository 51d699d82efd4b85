"""Running layers: one small seam, one folder per engine, each engine's library imported only there."""
