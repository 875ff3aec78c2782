"""A byte ring too simple to be wrong: what was put and not taken yet."""


class Ring:
    def __init__(self, ring_bytes):
        self.ring_bytes = ring_bytes
        self.held = b""

    def write(self, data):
        put = data[: self.ring_bytes - len(self.held)]
        self.held += put
        return len(put)

    def read(self, bytes_max):
        out, self.held = self.held[:bytes_max], self.held[bytes_max:]
        return out
