"""What runs every op and knows none: builder, schema language, op libraries, and the hosts that call them."""
