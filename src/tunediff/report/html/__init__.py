"""The report: a folder that a browser opens from the disk, without a server or a network (method.md section 6)."""
