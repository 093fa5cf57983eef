"""The page at / and what it asks for beside recommendations: titles, fields and reasons."""
