"""What is made of the answers: statistics, and the report in its several forms."""
