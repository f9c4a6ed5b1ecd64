"""Machine identity: hardware addresses, serial numbers, enrolment and CSV files of machines."""
