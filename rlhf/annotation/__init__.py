"""Who rates pairs where there is no oracle: people with a spreadsheet, or a judge model behind an endpoint."""
