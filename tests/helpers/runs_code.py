"""What no reader of foreign files may do."""


class RunsCode:
    """A pickle of it makes the file `path`, were its reader to call what it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
