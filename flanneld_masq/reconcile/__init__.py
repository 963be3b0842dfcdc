"""One pass over one family: observe, plan, apply, verify."""
