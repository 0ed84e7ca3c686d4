"""Resources: desired states of a machine. See `xenlab.resources.base`."""
