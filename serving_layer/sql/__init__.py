"""What an analyst's SQL may do, and how it is rendered for each store."""
