"""What goes where: memory, speed and settings of a bundle on a machine, from headers alone."""
