"""Lines that stand in for symbols of TensorFlow Addons: to be copied, they are no interface of this package.

Each takes what TensorFlow Addons' own took (where it says nothing else), and docs/tfa_migration.md shows all of them.
"""
