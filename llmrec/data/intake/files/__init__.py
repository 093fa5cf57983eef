"""Files of any format, opened: the names of their columns, and a way to read some of them."""
