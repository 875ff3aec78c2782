"""The dashboard: a web page that is a client of the public API, in a process of its own."""
