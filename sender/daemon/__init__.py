"""``diskcast serve``: casts with a life of their own, leased from the database, watched and steered by many."""
