"""Sparse mixture of experts: router, dispatch, auxiliary losses."""
