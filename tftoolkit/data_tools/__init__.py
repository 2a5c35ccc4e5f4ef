"""What ``tftoolkit data inspect`` shows of a data set."""
