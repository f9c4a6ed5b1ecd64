"""Machine identity: hardware addresses, serial numbers, agents' reports and CSV files of machines."""
