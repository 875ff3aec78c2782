# Nobody includes this; it says that the module exports nothing to other native ones.
