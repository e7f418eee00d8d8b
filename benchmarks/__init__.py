"""What reading attention costs, beside other ways of reading it and beside passes that read nothing."""
