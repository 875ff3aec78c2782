"""Agreement on one order of commands: protocols as state machines, and what drives, replays and switches them."""
