"""What a hostile checkpoint holds."""


class RunsCode:
    """Pickled, it has whoever reads it open a file to write, were the reader allowed to."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
