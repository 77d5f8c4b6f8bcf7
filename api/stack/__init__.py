"""`promptmill up`: the whole product on one machine, from wheels, without root or containers."""
