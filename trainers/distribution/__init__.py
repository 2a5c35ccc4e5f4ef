"""Several devices and several processes: replicas, gangs, parameter servers."""
