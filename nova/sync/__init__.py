"""How nodes find each other, how news travels, and how what was missed is found: cores without I/O."""
