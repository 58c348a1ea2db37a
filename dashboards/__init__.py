"""Dashboards, alerts and scrape rules, made from the metrics registry."""
