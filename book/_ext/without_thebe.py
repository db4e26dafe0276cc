"""Leave out thebe, which Jupyter Book always sets up: unused here, and every page would name a CDN for it."""

UNWANTED = ("init_thebe_core", "update_thebe_context")


def setup(app):
    for listeners in app.events.listeners.values():
        listeners[:] = [each for each in listeners if getattr(each.handler, "__name__", "") not in UNWANTED]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
